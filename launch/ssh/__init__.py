"""Jobs on plain hosts: one ssh connection to each, and at its other end an agent that starts that host's ranks."""
