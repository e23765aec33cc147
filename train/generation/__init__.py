"""Text generation with a language model: batches of prompts, and streams."""
