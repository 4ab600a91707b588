"""Lines, tables and progress bars on the terminal."""
