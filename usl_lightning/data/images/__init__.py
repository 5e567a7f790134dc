"""Images: from files and arrays to uint8."""
