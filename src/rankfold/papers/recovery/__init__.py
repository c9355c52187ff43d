"""Recovery guarantees: experiments."""
