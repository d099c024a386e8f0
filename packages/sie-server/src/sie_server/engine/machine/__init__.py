"""What the system says of the machine: limits of its containers, and its GPU."""
