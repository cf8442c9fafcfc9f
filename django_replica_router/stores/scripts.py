"""What a Redis or Valkey server does at once, in Lua: raise records, and follow them to their owners."""

from __future__ import annotations

# Reads a record as ``Record.decode`` does. Of a pin of 8 digits and an owner of 16, either may be
# missing; a missing pin is the empty text, which is lower than any other, and so is what was seen.
# Texts are compared byte by byte, since ``>`` goes by the locale of the server: in a Danish one
# "aa" comes after "z", and elsewhere "B" after "a".
_READ_FUNCTION = """
local function is_above(one, other)
  for i = 1, #one do
    local mine, others = string.byte(one, i), string.byte(other, i) or 0
    if mine ~= others then return mine > others end
  end
  return false
end
local function digits(count) return string.rep('[-0-9A-Z_a-z]', count) end
local shape = '^([23])(' .. digits(16) .. ')(' .. digits(8) .. ')([-0-9A-Z_a-z]*)$'
local function read(text)
  local version, position, expires, rest = string.match(text, shape)
  if not version then return nil end
  local seen = ''
  if version == '3' then
    seen, rest = string.sub(rest, 1, 16), string.sub(rest, 17)
    if #seen < 16 or not is_above(seen, position) then return nil end
  end
  if #rest % 8 ~= 0 or #rest > 24 then return nil end
  local pinned = string.sub(rest, 1, #rest % 16)
  if pinned == '--------' then return nil end
  return position, expires, pinned, string.sub(rest, #pinned + 1), seen
end
"""

# KEYS: the keys. ARGV: for each key the encoded record and its time to live in milliseconds; then 1
# where the server may have dropped a record, else 0.
# What is no record is overwritten: merged, it would be a record for nobody. What was written up to then
# is not known, nor where one may have been dropped: so what was seen counts as written.
MERGE = (
    _READ_FUNCTION
    + """
for i, key in ipairs(KEYS) do
  local position, expires, pinned, owner, seen = read(ARGV[2 * i - 1])
  local life = tonumber(ARGV[2 * i])
  local old = redis.pcall('GET', key)
  local p, e, n, o, s
  if type(old) == 'string' then p, e, n, o, s = read(old) end
  if p then
    if is_above(p, position) then position = p end
    if is_above(e, expires) then expires = e end
    if is_above(n, pinned) then pinned = n end
    if is_above(s, seen) then seen = s end
    if owner == '' then owner = o end
    local left = redis.call('PTTL', key)
    if left > life then life = left end
  elseif seen ~= '' and (old or ARGV[#ARGV] == '1') then
    position = seen
  end
  local version = '3'
  if not is_above(seen, position) then version, seen = '2', '' end
  redis.call('SET', key, version .. position .. expires .. seen .. pinned .. owner, 'PX', life)
end
return #KEYS
"""
)

# KEYS: the keys. ARGV: what comes before the name of an owner in its key. Returns the server's run_id,
# the values, and then the owners that they name, each with its value: what a session's record leads to
# costs no second round trip.
LOAD = (
    _READ_FUNCTION
    + """
local found = redis.call('MGET', unpack(KEYS))
local about = redis.pcall('INFO', 'server')
table.insert(found, 1, type(about) == 'string' and string.match(about, 'run_id:(%x+)') or '')
local seen = {}
for i = 2, #KEYS + 1 do
  local _, _, _, owner = read(found[i] or '')
  if owner and owner ~= '' and not seen[owner] then
    seen[owner] = true
    found[#found + 1] = owner
    found[#found + 1] = redis.pcall('GET', ARGV[1] .. owner)
  end
end
return found
"""
)
