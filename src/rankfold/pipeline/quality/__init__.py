"""A budget in quality: the smallest network whose judging figure falls by no more than what is allowed."""
