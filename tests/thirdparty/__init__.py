"""Third-party mpi4py programs, unchanged, by command; see __main__.py."""
