"""The networks of the papers, and a small one."""
