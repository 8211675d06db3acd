import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;

/** Statements with Connector/J, which is told of no CA: `java Rows HOST STATEMENT …`; a line of cells or an error each. */
public class Rows {
    public static void main(String[] words) throws Exception {
        String url = "jdbc:mysql://" + words[0] + "/orders?user=anyone&sslMode=VERIFY_IDENTITY&useServerPrepStmts=true";
        try (Connection connection = DriverManager.getConnection(url)) {
            for (int at = 1; at < words.length; at++) {
                System.out.println(said(connection, words[at]));
            }
        }
    }

    static String said(Connection connection, String statement) {
        boolean isPrepared = statement.endsWith("?");
        try (Statement plain = connection.createStatement(); PreparedStatement prepared = isPrepared ? connection.prepareStatement(statement) : null) {
            if (isPrepared) {
                prepared.setInt(1, 1);
            }
            if (!isPrepared) {
                plain.execute(statement);
            }
            ResultSet rows = isPrepared ? prepared.executeQuery() : plain.getResultSet();
            StringBuilder found = new StringBuilder();
            while (rows.next()) {
                for (int column = 1; column <= rows.getMetaData().getColumnCount(); column++) {
                    found.append(rows.getString(column)).append('|');
                }
            }
            return found.toString();
        } catch (SQLException error) {
            return "error " + error.getErrorCode();
        }
    }
}
