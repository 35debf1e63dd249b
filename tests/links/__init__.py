"""Channel routed between network namespaces: ranks behind NATs of several kinds."""
