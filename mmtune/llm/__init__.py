"""Language models and their tokenizers. One file per family; the file name is the name in a recipe."""
