"""A tiny GLM-4V that sees: the pictures it learns from, the talk about them, its training, its scores."""
