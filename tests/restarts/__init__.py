"""Jobs whose ranks, launchers and emulators are killed: `python -m tests.restarts`."""
