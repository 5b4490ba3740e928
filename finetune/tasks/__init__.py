"""The tasks: what is learned and measured of each, and a little data of its form that can be drawn."""
