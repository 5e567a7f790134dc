"""Arrays and numbers as pictures and charts."""
