"""Which layers matter when a language model is fine-tuned: Identifying Layer Importance (ILA)."""
