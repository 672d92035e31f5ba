"""The page that a run leaves behind, and its tables on a terminal. Imports nothing heavy."""
