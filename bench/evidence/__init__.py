"""Experiments on student-friendly teachers: recipes, the images of one of them, and measures of teachers."""
