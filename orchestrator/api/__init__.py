"""The Python API: what a notebook or a script gets, over the same run folders as the commands."""
