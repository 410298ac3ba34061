"""Plain `torch.nn` pieces without configs, shared by encoders, connectors, language models and fusions."""
