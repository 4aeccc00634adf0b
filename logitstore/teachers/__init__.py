"""Teachers: one file a framework. ``base`` holds the protocol that a teacher keeps."""

from .protocol import Head, Teacher, TeacherSpec, load_teacher

__all__ = ["Head", "Teacher", "TeacherSpec", "load_teacher"]
