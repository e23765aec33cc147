"""Processes, devices, meshes, and the placement of arrays on them."""
