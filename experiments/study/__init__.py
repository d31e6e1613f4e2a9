"""The study: does penalising curvature help, and what does it cost?"""
