"""What a run would need and cost on chips that are not here: topologies, compiled programs, estimates and search."""
