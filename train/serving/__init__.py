"""An HTTP server for trying a model: OpenAI's endpoints for language models, predictions for task heads, and a page."""
