"""What would pay on this machine, before anybody compresses anything."""
