"""Fusions: how media embeddings enter the language model. The file name is the name in a recipe."""
