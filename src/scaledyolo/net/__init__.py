"""How a graph trains: the torch network, its layers and its first weights."""
