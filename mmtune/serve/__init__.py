"""Conversations and their faces: terminal, browser page, HTTP."""
