"""Who is at work: this process and its memory, and several processes as one team."""
