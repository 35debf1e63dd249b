"""Facts of a deployed stack that both who deploys it and the functions that run in it rely on."""
