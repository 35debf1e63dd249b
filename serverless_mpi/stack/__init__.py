"""Facts of a deployed stack on which `deploy` and the functions of the stack both rely."""
