"""What every part may use: errors, files, configurations, arguments."""
