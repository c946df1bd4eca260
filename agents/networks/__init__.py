"""Features extractors of policies."""
