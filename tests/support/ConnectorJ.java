import java.io.StringReader;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;

/** What programs of the JVM do with Connector/J, one line a step: `java ConnectorJ.java PORT ASKING_PORT`. */
public class ConnectorJ {
    static final String[][] WAYS = {
        {"plain", "sslMode=DISABLED"},
        {"tls", "sslMode=REQUIRED"},
        {"prepared", "useServerPrepStmts=true&cachePrepStmts=true"},
        {"rewritten", "useServerPrepStmts=true&cachePrepStmts=true&rewriteBatchedStatements=true"},
        {"cursor", "useCursorFetch=true&defaultFetchSize=100"},
        {"quick", "useConfigs=maxPerformance"},
    };

    public static void main(String[] ports) throws Exception {
        try (Connection connection = open(ports[1], "useServerPrepStmts=true")) {
            step("held", () -> {
                try (PreparedStatement change = connection.prepareStatement("UPDATE customers SET name = ? WHERE id = ?")) {
                    change.setString(1, "Ada L.");
                    change.setInt(2, 1);
                    return "" + change.executeUpdate();
                }
            });
        }
        for (String[] way : WAYS) {
            try (Connection connection = open(ports[0], way[1])) {
                work(way[0], connection);
            }
        }
        for (String options : new String[] {"characterEncoding=latin1", "sessionVariables=sql_mode='ANSI_QUOTES'"}) {
            step("opened with " + options, () -> { open(ports[0], options).close(); return "yes"; });
        }
    }

    static Connection open(String port, String options) throws SQLException {
        return DriverManager.getConnection("jdbc:mysql://127.0.0.1:" + port + "/orders?user=agent&password=any&" + options);
    }

    static void work(String way, Connection c) throws Exception {
        step(way + " rows", () -> {
            try (PreparedStatement read = c.prepareStatement("SELECT id, customer, total, made, note FROM orders WHERE id < ?")) {
                read.setInt(1, 900);
                return count(read.executeQuery());
            }
        });
        step(way + " streamed", () -> {
            try (Statement read = c.createStatement(ResultSet.TYPE_FORWARD_ONLY, ResultSet.CONCUR_READ_ONLY)) {
                read.setFetchSize(Integer.MIN_VALUE);
                return count(read.executeQuery("SELECT * FROM orders"));
            }
        });
        step(way + " rolled back", () -> {
            c.setAutoCommit(false);
            try (PreparedStatement add = c.prepareStatement("INSERT INTO invoices (id, note) VALUES (?, ?)")) {
                for (int id = 5000; id < 5050; id++) {
                    add.setInt(1, id);
                    add.setString(2, "n" + id);
                    add.addBatch();
                }
                int added = add.executeBatch().length;
                c.rollback();
                c.setAutoCommit(true);
                return "" + added;
            }
        });
        step(way + " updated", () -> {
            try (PreparedStatement change = c.prepareStatement("UPDATE invoices SET note = ? WHERE id = ?")) {
                for (int id = 1; id < 9; id++) {
                    change.setString(1, way);
                    change.setInt(2, id);
                    change.addBatch();
                }
                return "" + change.executeBatch().length;
            }
        });
        step(way + " sent ahead", () -> {
            try (PreparedStatement change = c.prepareStatement("UPDATE invoices SET note = ? WHERE id = 9")) {
                change.setCharacterStream(1, new StringReader("streamed"), 8);
                return "" + change.executeUpdate();
            }
        });
        step(way + " session", () -> {
            c.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
            c.setReadOnly(true);
            c.setReadOnly(false);
            c.setAutoCommit(false);
            c.rollback(c.setSavepoint("here"));
            c.commit();
            c.setAutoCommit(true);
            c.setCatalog("orders");
            return "" + c.isValid(5);
        });
        step(way + " catalog", () -> count(c.getMetaData().getColumns("orders", null, "orders", "%"))
            + " " + count(c.getMetaData().getPrimaryKeys("orders", null, "orders"))
            + " " + count(c.getMetaData().getProcedures("orders", null, "%")));
        step(way + " refused", () -> {
            try (PreparedStatement read = c.prepareStatement("SELECT * FROM secrets WHERE id = ?")) {
                read.setInt(1, 1);
                return count(read.executeQuery());
            }
        });
        if (way.equals("plain") || way.equals("cursor")) {
            step(way + " too long", () -> {
                try (Statement read = c.createStatement()) {
                    read.setQueryTimeout(1);
                    return count(read.executeQuery("SELECT sleep(20) FROM orders WHERE id = 1"));
                }
            });
        }
        step(way + " afterwards", () -> {
            try (Statement read = c.createStatement()) {
                return count(read.executeQuery("SELECT 1"));
            }
        });
    }

    static String count(ResultSet rows) throws SQLException {
        int found = 0;
        while (rows.next()) {
            found++;
        }
        return "" + found;
    }

    interface Step {
        String run() throws Exception;
    }

    static void step(String name, Step step) {
        try {
            System.out.println(name + ": " + step.run());
        } catch (SQLException error) {
            System.out.println(name + ": error " + error.getErrorCode() + " " + error.getMessage());
        } catch (Exception error) {
            System.out.println(name + ": " + error);
        }
    }
}
