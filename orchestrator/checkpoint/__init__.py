"""State on disk: its layout, its commit order, its verification."""
