"""Teachers: the protocol of a teacher, and one module for each framework."""

from .protocol import Head, Teacher, TeacherSpec, load_teacher

__all__ = ["Head", "Teacher", "TeacherSpec", "load_teacher"]
