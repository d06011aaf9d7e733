"""External memories and the network that uses one."""
