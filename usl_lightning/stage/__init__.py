"""One stage: words, identity, folder, verb; a verb is a file."""
