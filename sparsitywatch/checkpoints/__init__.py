"""Where offline weights come from: discovery, one reader per format behind one seam."""
