"""For the user's torch interpreter: `PYTHON release_adapter COMMAND JOB.json`; process_memory.py alone is for both."""
