"""Rules that remove or change documents before they are tokenized, each a pure function of one document."""
