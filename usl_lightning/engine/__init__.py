"""Lightning's Trainer as this package runs it; the only room that touches its private names and torch's."""
