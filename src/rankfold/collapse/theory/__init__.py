"""What can be predicted without the network: Gaussian clusters, deep linear networks, where ranks change."""
