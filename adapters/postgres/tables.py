"""The tables, as SQLAlchemy knows them; `migrations/` is what makes them."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    text,
)

# All tables live in a schema of their own, so that a database may be shared with other programs.
SCHEMA = "zishu"
# The newest migration; while the database says the same, alembic is not even imported.
REVISION = "0001"

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)


class Said(TypeDecorator[str]):
    """Text that people or models wrote: NUL is left out and half a surrogate pair becomes U+FFFD on the way in.

    PostgreSQL takes neither, and no turn is lost over them.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Return what PostgreSQL can store."""
        if value is None:
            return None
        return value.replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# What lies between one user and one character, from one conversation to the next.
relationships = Table(
    "relationships",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("character", Text, primary_key=True),
    Column("valence", Double, nullable=False),
    Column("arousal", Double, nullable=False),
    Column("dominance", Double, nullable=False),
    Column("felt_at", DateTime(timezone=True), nullable=False),
    Column("face", Text, nullable=False),
    Column("face_intensity", Double, nullable=False),
    Column("accessory", Text, nullable=False),
    Column("called", Said),
    Column("expert", Text, nullable=False),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("ordinal", BigInteger, Identity(always=True), nullable=False),
    Column("owner", Text, nullable=False),
    Column("character", Text, nullable=False),
    Column("begun_at", DateTime(timezone=True), nullable=False),
    Column("closed_at", DateTime(timezone=True)),
    UniqueConstraint("id", "owner", "character"),
    Index("conversations_owner_character_idx", "owner", "character", "ordinal"),
    Index(
        "conversations_open_idx", "owner", "character", unique=True, postgresql_where=text("closed_at IS NULL")
    ),
)  # fmt: skip

turns = Table(
    "turns",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("ordinal", BigInteger, Identity(always=True), nullable=False),
    Column("conversation_id", Uuid, nullable=False),
    Column("owner", Text, nullable=False),
    Column("character", Text, nullable=False),
    Column("user_text", Said, nullable=False),
    Column("said_at", DateTime(timezone=True), nullable=False),
    Column("reply", Said, nullable=False),
    Column("state", Text, nullable=False),
    Column("expert", Text, nullable=False),
    Column("emotion", Text, nullable=False),
    Column("emotion_intensity", Double, nullable=False),
    Column("heard_chars", Integer),
    # A turn cannot belong to one scope and its conversation to another.
    ForeignKeyConstraint(
        ["conversation_id", "owner", "character"],
        ["conversations.id", "conversations.owner", "conversations.character"],
        ondelete="CASCADE",
    ),
    UniqueConstraint("id", "owner", "character"),
    Index(None, "conversation_id", "ordinal"),
)

ratings = Table(
    "ratings",
    metadata,
    Column("turn_id", Uuid, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("character", Text, nullable=False),
    Column("good", Boolean, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("note", Said, nullable=False),
    ForeignKeyConstraint(
        ["turn_id", "owner", "character"],
        ["turns.id", "turns.owner", "turns.character"],
        ondelete="CASCADE",
    ),
    Index(None, "owner", "character", "at"),
)
