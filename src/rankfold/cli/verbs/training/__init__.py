"""A trained model or an adapter comes out."""
