"""Processes, devices, meshes, and where arrays live on them."""
