-- A table to play with, and the accounts that read its changes.
create table orders (
    id bigint generated always as identity primary key,
    item text not null,
    placed timestamptz not null default now()
);
create table customers (
    id bigint generated always as identity primary key,
    name text not null
);
insert into customers (name) select 'customer ' || n from generate_series(1, 100) as n;
insert into orders (item) select 'item ' || n from generate_series(1, 1000) as n;

create role debezium with login replication password 'debezium';
grant select on all tables in schema public to debezium;
create publication cdc for all tables;
