"""What every part may use: the user's error and careful file handling."""
