"""Text generation for batches of prompts."""
