"""Conversations, what lies between user and character, and ratings."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public")
    op.create_table(
        "conversations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("ordinal", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("character", sa.Text(), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="conversations_pkey"),
        sa.UniqueConstraint("id", "owner", "character", name="conversations_id_owner_character_key"),
    )
    op.create_index(
        "conversations_open_idx",
        "conversations",
        ["owner", "character"],
        unique=True,
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index(
        "conversations_owner_character_idx", "conversations", ["owner", "character", "ordinal"], unique=False
    )
    op.create_table(
        "relationships",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("character", sa.Text(), nullable=False),
        sa.Column("valence", sa.Double(), nullable=False),
        sa.Column("arousal", sa.Double(), nullable=False),
        sa.Column("dominance", sa.Double(), nullable=False),
        sa.Column("felt_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("face", sa.Text(), nullable=False),
        sa.Column("face_intensity", sa.Double(), nullable=False),
        sa.Column("accessory", sa.Text(), nullable=False),
        sa.Column("called", sa.Text(), nullable=True),
        sa.Column("expert", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "character", name="relationships_pkey"),
    )
    op.create_table(
        "turns",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("ordinal", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("character", sa.Text(), nullable=False),
        sa.Column("user_text", sa.Text(), nullable=False),
        sa.Column("said_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reply", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("expert", sa.Text(), nullable=False),
        sa.Column("emotion", sa.Text(), nullable=False),
        sa.Column("emotion_intensity", sa.Double(), nullable=False),
        sa.Column("heard_chars", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["conversation_id", "owner", "character"],
            ["conversations.id", "conversations.owner", "conversations.character"],
            name="turns_conversation_id_owner_character_fkey",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="turns_pkey"),
        sa.UniqueConstraint("id", "owner", "character", name="turns_id_owner_character_key"),
    )
    op.create_index("turns_conversation_id_ordinal_idx", "turns", ["conversation_id", "ordinal"], unique=False)
    op.create_table(
        "ratings",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("character", sa.Text(), nullable=False),
        sa.Column("good", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["turn_id", "owner", "character"],
            ["turns.id", "turns.owner", "turns.character"],
            name="ratings_turn_id_owner_character_fkey",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("turn_id", name="ratings_pkey"),
    )
    op.create_index("ratings_owner_character_at_idx", "ratings", ["owner", "character", "at"], unique=False)


def downgrade() -> None:
    op.drop_index("ratings_owner_character_at_idx", table_name="ratings")
    op.drop_table("ratings")
    op.drop_index("turns_conversation_id_ordinal_idx", table_name="turns")
    op.drop_table("turns")
    op.drop_table("relationships")
    op.drop_index("conversations_owner_character_idx", table_name="conversations")
    op.drop_index("conversations_open_idx", table_name="conversations", postgresql_where=sa.text("closed_at IS NULL"))
    op.drop_table("conversations")
