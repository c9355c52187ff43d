"""The objectives, one kind of question in each file."""
