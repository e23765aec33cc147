"""Plain `ConfigDict`s, the errors a user sees and the check that turns a config into dataclasses."""
