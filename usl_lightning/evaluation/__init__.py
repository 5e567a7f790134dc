"""How good features, clusters and label sets are. Nothing here is read by anything that trains or selects."""
